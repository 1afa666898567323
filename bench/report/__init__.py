"""Records of scenarios as a page that needs nothing else, and as pictures.

`plots` draws what a record holds, `page` puts it together. Nothing here measures.
"""
