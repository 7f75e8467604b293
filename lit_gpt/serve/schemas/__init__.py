"""What the endpoints take and answer, as pydantic models: these are also what /openapi.json says."""
