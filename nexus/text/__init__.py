"""The grammar of answers: thinking, tool calls and final answers; templates, rewards and metrics share it. No torch."""
