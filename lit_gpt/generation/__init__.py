"""Text from a model: drawing tokens (`sampling`), decoding with a cache (`engine`), what the generate scripts share."""
