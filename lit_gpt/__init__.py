"""Finetune open decoder-only language models on one GPU. Scripts import what they need from the submodules."""
