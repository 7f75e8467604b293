"""Finetuning: the loop (`loop`), its loss, schedule, figures (`monitor`, `flops`) and what surrounds it (`run`)."""
