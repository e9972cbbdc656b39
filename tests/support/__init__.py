"""What tests share: real servers, bounded waiting, free ports."""
