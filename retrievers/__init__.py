"""The scan with its kernels, what refines its answers, and the LangChain classes."""
