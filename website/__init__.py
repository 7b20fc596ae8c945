"""The documentation site: the pages of the checkout, and further ones that are made of the code.

`make docs` writes it to site/. The folder build/site holds the pages in the meantime, as Sphinx reads them.
"""
