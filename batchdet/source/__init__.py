"""Where images come from: inventories, shards and the readers that cut shards into segments."""
