"""Answers that a model samples and a checker grades: written as rows and pairs, or learned from as they come."""
