"""What a run will take, said before it starts: memory (`memory_items`), work (`work`), time (`seconds`, `probe`), and
what would make it fit (`fit`)."""
