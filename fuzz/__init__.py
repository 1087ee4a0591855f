"""The harness: draws cases, runs every subject on them, judges what they return, keeps what fails."""
