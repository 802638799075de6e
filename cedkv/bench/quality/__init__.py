"""What memories are worth beside their peers: the same documents, prompts and judge for all of them, at equal bytes."""
