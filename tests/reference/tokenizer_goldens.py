"""Token ids of awkward strings by Hugging Face tokenizers built from the vocabularies inside GGUF files.

No tokenizer knows any special token here: "<s>" in a text is plain text, as it is for a user's input.
"""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from isotherm_tools.gguf_llama import Vocabulary
from isotherm_tools.hf_tokenizer import llama_tokenizer
from isotherm_tools.tales_text import tokenizer_from_gguf

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"llama-bpe": LLAMA3_PATTERN, "qwen2": LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")}


def _array(reader: GGUFReader, key: str) -> list:
    field = reader.get_field(f"tokenizer.ggml.{key}")
    assert field is not None, key
    return field.contents()


def load_spm(path: Path) -> Tokenizer:
    """Llama's tokenizer over the vocabulary in a file."""
    reader = GGUFReader(path)
    return llama_tokenizer(Vocabulary(*(_array(reader, key) for key in ("tokens", "scores", "token_type"))))


def load_bpe(path: Path, kind: str) -> Tokenizer:
    """A byte-level BPE tokenizer with the pre-tokenizer `kind`: gpt2, falcon, llama-bpe or qwen2."""
    reader = GGUFReader(path)
    tokens = _array(reader, "tokens")
    merges = [tuple(merge.split(" ")) for merge in _array(reader, "merges")]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges,
                              ignore_merges=kind == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    if kind == "gpt2":
        tokenizer.pre_tokenizer = byte_level
    elif kind == "falcon":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation(behavior="contiguous"), byte_level,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior="isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def corpus() -> list[str]:
    """At least 150 strings that tokenizers get wrong; every entry is valid Unicode."""
    texts = [""]
    texts += [chr(code) for code in range(256)]
    texts += [f"a{chr(code)}b" for code in (*range(33), 127, 0x85, 0xA0, 0xAD)]
    texts += [" " * n for n in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100)]
    texts += ["\t" * n for n in (2, 3, 4, 9)] + ["\n" * n for n in (2, 3, 4, 5, 9, 30)]
    texts += ["\r\n", "\r\n\r\n", "\n \n", " \n", "\n ", "\t\n", "\n\t", " \t ", "\t \t", "a\n\n\nb", "a \n b", "a\r\nb",
              "  \n  \n", "x   y", "x  ", "  x", " x ", "x\ty", "x\t\ty", "   leading", "trailing   ",
              "\u00a0x", "x\u00a0y", "x\u2003y", "x\u3000y", "\u2028", "\u2029", "\u200b", "a\u200bb", "\ufeff", "\ufeffBOM",
              "\u2581", "\u2581\u2581", "a\u2581b", " \u2581 ", "\u2581Hello"]
    texts += ["Hello", " Hello", "Hello world", "Hello, world!", "hello  world", "HELLO WORLD", "hElLo WoRlD",
              "The quick brown fox jumps over the lazy dog.", "Once upon a time there lived a king.",
              "e.g., i.e., etc...", "a", "ab", "abc" * 30, "Antidisestablishmentarianism", "supercalifragilistic"]
    texts += ["I'm", "I'M", "you're", "YOU'RE", "we've", "he'll", "they'd", "it's", "IT'S", "don't", "DON'T", "'s", "'S",
              "'tis", "rock 'n' roll", "o'clock", "''s", "'\u017f", "x'\u017fy", "\u2019s", "it\u2019s", "'re've'll", "a'b'c",
              "'dog", "'LLama", "' s"]
    texts += ["0", "1", "12", "123", "1234", "12345", "123456", "1234567", "12345678", "123456789", "1" * 50,
              "3.14159", "1,000,000", "-42", "+42", "1e-10", "0x1F", "007", "a1b2c3", "v1.2.3", "2024-01-31", "12:34:56",
              "100%", "$100", "1st", "\u00b2", "x\u00b2", "\u00bd", "1\u00bd", "\u0661\u0662\u0663\u0664", "\u0967\u0968\u0969\u096a",
              "\uff11\uff12\uff13\uff14", "\u2163", "\u2460\u2461", "1 2 3", "12 345 6789", " 123", " 1234", "  12"]
    texts += ["!", "!!", "!!!", "...", "\u2026", "--", "---", "\u2014", "?!", "(a)", "[b]", "{c}", "<d>", "\"q\"", "`code`",
              "a_b", "__init__", "a-b", "a/b/c", "C:\\path\\file", "#tag", "@user", "x=y+z", "a&&b||c", "~^|", "$+<=>^~|`",
              "if (x) { return y; }", "for(int i=0;i<n;++i)", "\tdef f(x):\n\t\treturn x", "    return 1\n",
              "<div class=\"a\">b</div>", "{\"k\": [1, 2.5, null]}", "https://example.org/a?b=c&d=e#f", "a@b.c",
              "*bold* _it_", " !", " !!", "! !", "\u00bfQu\u00e9?", "\u00a1Hola!", "\u201cquoted\u201d", "\u00abguillemets\u00bb", "x.\n", ".\n\n",
              "!\n", "!\r\n\r\n", "=\n=\n", " .\n", "\u3002\uff0c\uff01"]
    texts += ["caf\u00e9", "cafe\u0301", "na\u00efve", "\u00fcber", "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "\u1ebf", "e\u0302\u0301", "a\u0300\u0301\u0302\u0303\u0304",
              "Z\u0351\u0349a\u0353\u0360l\u035cg\u0321o\u0334", "\u0301", "\u0301a", " \u0301", "stra\u00dfe", "STRASSE", "\u0130stanbul", "\u0131", "\u017f", "\ufb01",
              "\u01c6", "\u00df", "\u1e9e", "C\u1eeda Vi\u1ec7t", "\u0141\u00f3d\u017a", "\u010ce\u0161tina", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
              "\u0423\u043a\u0440\u0430\u0457\u043d\u0430", "\u10e1\u10d0\u10e5\u10d0\u10e0\u10d7\u10d5\u10d4\u10da\u10dd", "\u0540\u0561\u0575\u0565\u0580\u0565\u0576"]
    texts += ["\u4f60\u597d", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u6211\u662f\u4e00\u4e2a\u5b66\u751f\u3002", "\u65e5\u672c\u8a9e", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u30ab\u30bf\u30ab\u30ca", "\uff76\uff80\uff76\uff85", "\ud55c\uad6d\uc5b4",
              "\u1112\u1161\u11ab", "\u4e2d\u6587 English \u6df7\u5408", "\u4e2d\u65872024\u5e74", "\U00020000", "\U0002a6d6\U0002b740", "\u2f00", "\u3042\u3099"]
    texts += ["\u0645\u0631\u062d\u0628\u0627", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "\ufef2", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0915\u094d\u0937\u093f",
              "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u1798\u17b6\u1793", "\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f", "\u0f56\u0f7c\u0f51\u0f0b", "\u1019\u103c\u1014\u103a\u1019\u102c",
              "\u12a0\u121b\u122d\u129b", "\u13e3\u13b3\u13a9", "\ua9a7", "\U00010330\U00010331", "\U00012000", "\u202eRTL\u202c", "a\u0627b", "\u0627a\u0628"]
    texts += ["\U0001f600", "\U0001f600\U0001f600", " \U0001f600", "a\U0001f600b", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\u2764",
              "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
              "1\ufe0f\u20e3", "\U0001f9d1\U0001f3ff\u200d\U0001f680", "\U0001f636\u200d\U0001f32b\ufe0f", "\U0001fae0", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
              "\u2603\u26c4", "\u2192\u21d2", "\u2211\u222b\u221a\u221e", "\U0001d49c\U0001d54f", "\u20ac\u00a3\u00a5\u20bf", "\u2122\u00ae\u00a9", "\u2591\u2592\u2593\u2588", "\u250c\u2500\u2510"]
    texts += ["\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000", "\x00\x00", "a\x00b", "\x1b[31mred\x1b[0m",
              "\x7f\x80\x81", "\ud7ff", "\U00010000", "\u07ff\u0800"]
    texts += ["<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0x41>", "a<s>b", " <s> ", "<s></s>", "<|endoftext|>", "a<|endoftext|>",
              "<|begin_of_text|>", "<|im_start|>user\n", "[INST] hi [/INST]", "<<SYS>>", ">>TITLE<<", ">>QUESTION<<",
              "<|eot_id|>", "<|", "|>", "<s", "s>"]
    texts += ["\n\n\n\nHello\n\n  there,\t\tfriend \U0001f600 it's 12345 \u4f60\u597d caf\u00e9...  \n",
              "   \u0928\u092e\u0938\u094d\u0924\u0947   123456   \u0645\u0631\u062d\u0628\u0627   'll   \U0001f468\u200d\U0001f469\u200d\U0001f467   ",
              "\"Who are you?\" said the Caterpillar.\n\nAlice replied, rather shyly, \"I--I hardly know, sir...\""]
    texts += ["a" * 5000, " " * 5000, ("The king said to his daughter, it's 1234 o'clock.\n" * 100)[:5000],
              ("\u4f60\u597d\uff0c\u4e16\u754c" * 1000)[:5000], ("\U0001f600 x\t" * 1250)[:5000], "ab" * 2500]
    return texts


def verify(tokenizer: Tokenizer, vocabulary: Path) -> int:
    """Checks the vectors X.gguf.inp and X.gguf.out beside a vocabulary; the number of vectors."""
    inputs = vocabulary.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    assert inputs.pop() == ""
    outputs = vocabulary.with_suffix(".gguf.out").read_text().splitlines()
    for text, line in zip(inputs, outputs, strict=True):
        expected = [int(n) for n in line.split()]
        assert tokenizer.encode(text).ids == expected, (text, tokenizer.encode(text).ids, expected)
    return len(outputs)


def compare_sentencepiece(path: Path, texts: list[str], goldens: list[list[int]]) -> list[str]:
    """The texts for which SentencePiece itself, built from the same vocabulary, gives other ids."""
    processor = tokenizer_from_gguf(path)
    return [text for text, ids in zip(texts, goldens) if list(processor.encode(text)) != ids]


def write_goldens(name: str, kind: str, path: Path, texts: list[str], out: Path, published: bool) -> None:
    """Writes tokenizer_NAME.jsonl for the vocabulary at `path`; `published` vectors beside it are checked first."""
    tokenizer = load_spm(path) if kind == "spm" else load_bpe(path, kind)
    checked = verify(tokenizer, path) if published else 0
    ids = [tokenizer.encode(text).ids for text in texts]
    with (out / f"tokenizer_{name}.jsonl").open("w", encoding="ascii") as lines:
        for text, encoded in zip(texts, ids):
            lines.write(json.dumps({"text": text, "ids": encoded}, separators=(",", ":")) + "\n")
    print(f"{name}: {len(texts)} strings, {checked} published vectors agree, "
          f"{sum(tokenizer.decode(e) != t for e, t in zip(ids, texts))} do not round-trip")
    if kind == "spm":
        differing = compare_sentencepiece(path, texts, ids)
        assert not differing, differing


def write_published(vocabularies: Path, out: Path) -> None:
    """Goldens of the published vocabularies, which are not kept here."""
    texts = list(dict.fromkeys(corpus()))
    for name, file in (("spm", "llama-spm"), ("gpt2", "gpt-2"), ("falcon", "falcon"), ("llama-bpe", "gpt-2"),
                       ("qwen2", "gpt-2")):
        write_goldens(name, name, vocabularies / f"ggml-vocab-{file}.gguf", texts, out, published=name not in PATTERNS)


def write_kept(tales: Path, out: Path) -> None:
    """Goldens of vocabularies in the repository: the demo model's, and a tiny byte-level BPE with three pre-tokenizers."""
    texts = [text for text in dict.fromkeys(corpus()) if len(text) <= 1000]
    texts.append(("The king said to his daughter, it's 1234 o'clock.\n" * 20))
    write_goldens("tales", "spm", tales, texts, out, published=False)
    tokens, merges = train_tiny_bpe(texts, 800)
    for name, kind in (("gpt-2", "gpt2"), ("falcon", "falcon"), ("llama-bpe", "llama-bpe")):
        path = out / f"vocab-tiny-{name}.gguf"
        writer = GGUFWriter(path, "gpt2")
        writer.add_name(f"tiny-{name}")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list([*tokens, "<|endoftext|>"])
        writer.add_token_types([int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.CONTROL)])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(len(tokens))
        writer.add_eos_token_id(len(tokens))
        writer.add_add_bos_token(False)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        write_goldens(f"tiny-{name}", kind, path, texts, out, published=False)


def train_tiny_bpe(texts: list[str], size: int) -> tuple[list[str], list[str]]:
    """(tokens by id, merges "left right" in order) of a byte-level BPE trained on the corpus itself."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(pair) for pair in model["merges"]]
