"""A model's text side: tokenizer, prompt rendering, output parsing, stop strings.

Knows: the harmony format, chat templates, tokenizers. Does not know: HTTP, the engine, torch.
`formats.open_chat_format` is the way in; everything else is what it is made of.
"""
