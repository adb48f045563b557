"""What benches/compare is made of; benches/README.md says how each figure is taken."""
