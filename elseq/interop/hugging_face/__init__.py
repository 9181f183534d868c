"""Models of Hugging Face's transformers as fairseq's, and back: BART and GPT-2. That library itself is not needed."""
