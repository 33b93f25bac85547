"""What carries a network out. One file per engine, each imported only when it is asked for."""
