"""Learned codecs: quantizers whose parameters are trained for the ranking; `ragq.pipelines.training` trains them."""
