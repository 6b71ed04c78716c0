"""What gradlab measures, inside anyone's own module and training loop."""
