import subprocess
import sys

LIGHT = """
import sys
from textleak.scoring.rouge import RougeScorer
RougeScorer(["rouge1"], use_stemmer=False).score("the cats sat", "the cat sat")
print("nltk" in sys.modules)
print(RougeScorer(["rouge1"], use_stemmer=True).score("the cats sat", "the cat sat")["rouge1"].fmeasure)
import nltk
print(nltk.stem.porter.__name__)
"""


def test_rouge_scores_without_nltk_until_its_stemmer_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1.0", "nltk.stem.porter"]
