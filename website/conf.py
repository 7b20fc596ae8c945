"""The settings of Sphinx."""

from difftool import __version__

project = "difftool"
version = release = __version__
extensions = ["myst_parser"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "html_image"]
myst_heading_anchors = 4

highlight_language = "none"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
smartquotes = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

html_theme = "furo"
html_title = f"difftool {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options: dict[str, object] = {"top_of_page_buttons": []}
