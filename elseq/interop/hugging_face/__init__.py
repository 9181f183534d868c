"""Models of Hugging Face's transformers as fairseq's, and back, by `families`. That library itself is not needed."""
