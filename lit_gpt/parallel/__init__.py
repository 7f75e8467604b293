"""Several processes that train one model together, one for each device."""
