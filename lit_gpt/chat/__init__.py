"""The chat in a terminal: what was said (`conversation`), who answers (`voice`), the loop around them (`session`)."""
