"""Prepares a data set: reads a file of rows, splits it into train and val, tokenizes both and stores them."""
