"""Language models: made, asked in the runtime that serves them, and judged by the words that they guess."""
