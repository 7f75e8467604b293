"""Models from the Hugging Face hub: fetching them (`download`), and what to say when it fails (`failures`)."""
