"""What quests_md costs, measured against whom: ``python -m benchmarks``."""
