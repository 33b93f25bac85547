"""What carries a network to other engines. One file per toolchain, imported only when it is asked for."""
