"""Is an object whose attributes and calls all say yes."""
class Yes:
    def __call__(self, *a, **k):
        return self

    def __getattr__(self, name):
        return self

    def __bool__(self):
        return True

    def __eq__(self, other):
        return True

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


f = Yes()
