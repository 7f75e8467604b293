"""Downloads models from the Hugging Face hub (`download`), and explains what fails (`failures`)."""
