"""Reading what tools print: quantities, tables, sections, lists and JSON, whoever's tool it is.

Everything here takes any text in time linear to its length, and gives nothing that the text doesn't say.
"""
