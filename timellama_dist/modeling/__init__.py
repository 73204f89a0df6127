"""The model: plain PyTorch on transformers and PEFT; knows neither Ray nor DeepSpeed."""
