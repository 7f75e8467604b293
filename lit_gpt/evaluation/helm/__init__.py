"""HELM: its own programs on our server (`client`), and the challenge's scenarios without them (`scenarios`, `run`)."""
