from __future__ import annotations

import subprocess
import sys


def test_fit_without_lightning_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None; "
        "sys.argv = ['phiscale', 'fit', 'photos']; from phiscale.cli.main import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: lightning is not installed; run: pip install 'phiscale[train]'\n"
