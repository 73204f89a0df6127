"""Time-LlaMA as the paper has it, the linear map beside it, and the exported model."""
