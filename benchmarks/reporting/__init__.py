"""What was measured, as one page that needs no network, and as pictures."""
