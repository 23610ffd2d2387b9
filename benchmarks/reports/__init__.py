"""Pages of docs/ and the table of the README, written from what was measured."""
