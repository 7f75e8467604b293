"""Two models on the same questions: `models` asks them, `statistics` and `verdicts` judge, `page` shows it."""
