"""Training of learned codecs: queries, losses, the loop, the gate; torch is imported when training begins."""
