from p2ptrain.core.digest import combine_digests, tensor_digest, weights_digest

A = ("F32", (2, 1), bytes(8))
B = ("F32", (1,), b"\x00\x00\x80\x3f")


def test_the_digest_does_not_depend_on_order_or_on_the_cut() -> None:
    whole = weights_digest({"b": B, "a": A})
    below = {"a": tensor_digest("a", *A)}
    above = {"b": tensor_digest("b", *B)}
    assert combine_digests(above | below) == whole


def test_name_shape_type_and_bytes_all_count() -> None:
    digests = {
        tensor_digest("a", "F32", (2, 1), bytes(8)),
        tensor_digest("b", "F32", (2, 1), bytes(8)),
        tensor_digest("a", "F32", (1, 2), bytes(8)),
        tensor_digest("a", "I32", (2, 1), bytes(8)),
        tensor_digest("a", "F32", (2, 1), bytes(7) + b"\1"),
    }
    assert len(digests) == 5
