"""Graphs and what runs them: export, passes, verification, engines. Importing this loads no runtime."""
