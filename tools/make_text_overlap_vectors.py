#!/usr/bin/env python3
"""Writes tests/data/text/sacrebleu.json: what sacrebleu says about made-up translations (pip install sacrebleu==2.6.0)."""
import json
import random
from pathlib import Path

import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

random.seed(5)
ref = [
    "Der alte Fischer flickt sein Netz, bevor die Sonne aufgeht.", "Zwei Kinder laufen über die nasse Wiese.",
    "Am 3. Mai 1987 kostete das Brot 1,85 Mark.", "Warum hast du den Brief nicht gelesen?", "Sie lacht, er schweigt.",
    "In der Küche riecht es nach Zimt und nach Äpfeln.", "Ein Hund schläft unter dem Tisch.", "Das Schiff ist um 10.30 Uhr abgefahren!",
    "Niemand wusste, woher der Fremde kam.", "Die Straße führt an einem Fluss entlang zum Dorf.", "Hast du schon gegessen?",
    "Große Wolken ziehen von Westen herauf.", "Er zählt bis 1.000 und beginnt von vorn.", "Der Lehrer schreibt zwei Wörter an die Tafel.",
    "Im Winter frieren die Seen zu.", "Meine Großmutter erzählte gern Märchen.", "Vor dem Haus steht ein rotes Fahrrad.",
    "Man hört den Wind in den Bäumen.", "Das Mädchen malt eine Katze mit drei Schwänzen.", "Gute Nacht, sagte der Mond."]
def damage(s):
    w = s.split(" ")
    for _ in range(random.randint(0, 4)):
        op = random.random(); i = random.randrange(len(w)) if w else 0
        if op < .4 and len(w) > 1: w.pop(i)
        elif op < .7: w.insert(i, random.choice(["und", "Hund", "3,5", "1.000.", "x-y", "ein"]))
        elif w: w[i] = w[i][::-1]
    return " ".join(w)
sets = []
def add(name, hyp, refs):
    b = sacrebleu.corpus_bleu(hyp, [refs]); c = sacrebleu.corpus_chrf(hyp, [refs])
    sets.append({"name": name, "hypotheses": hyp, "references": refs, "bleu": b.score, "precisions": list(b.precisions), "bp": b.bp,
                 "length": b.sys_len, "reference_length": b.ref_len, "chrf": c.score})
add("damaged German captions", [damage(s) for s in ref], ref)
add("the same", ref[:5], ref[:5])
add("too short", [" ".join(s.split(" ")[:4]) for s in ref[:12]], ref[:12])
add("nothing in common", ["xyzzy plugh qux"] * 3, ["Der Hund läuft.", "Ein Mann.", "Zwei Frauen"])
add("empty", ["", "ein"], ["Ein Hund", "ein Hund"])
add("all empty", ["", ""], ["Ein Hund", "ein Hund"])
add("few matches", ["the cat sat on mats", "no dogs allowed here now"], ["a cat stood on a mat.", "dogs are not allowed"])
odd = ["He paid $1,234.56 (approx.) -- 20-30% off!", "\"Quoted\" &amp; &lt;tagged&gt; text, e.g. 3.14,15.", "人们在 1999年-2000年 跑步。\u3000很好", "tabs\tand\u00a0nbsp, x.y.z a,b,c 1,2,3", "it's rock-'n'-roll, 7-Up; [ok] {no} a/b ~tilde `tick` | pipe", "end. ", "...,,, --- 5- 6-7 8 -9", "naïve façade – dash — em… ellipsis", "a\x1cb\x0bc d\u2028e f\u200ag", "10.000,50 .5 5. ,5 5,"]
hyp = ["He paid $1,234.65 (about) - 20-30 % off", "\"Quoted\" & <tagged> text e.g. 3.14, 15", "人们 在 1999年 跑步。很 好", "tabs and nbsp , x.y.z a, b, c 1,2, 3", "its rock-n-roll , 7-up ; [ok] (no) a / b ~ tilde tick | pipe", "end.", ".. ,, -- 5-6 -7 8- 9", "naive facade - dash – em... ellipsis", "a b c d e f g", "10,000.50 0.5 5. , 5 5"]
add("signs, digits and spaces", hyp, odd)
add("signs, digits and spaces, reversed", odd, hyp)
t = Tokenizer13a()
tokens = [{"text": s, "tokens": t(s.rstrip()).split(" ") if t(s.rstrip()) else []} for s in odd + hyp]
sent = [{"hypothesis": h, "reference": r, "chrf": sacrebleu.sentence_chrf(h, [r]).score} for h, r in list(zip(hyp, odd)) + [("", "x"), ("x", ""), ("ab", "ab"), ("a", "b")]]
json.dump({"sacrebleu": sacrebleu.__version__, "corpora": sets, "tokens": tokens, "sentences": sent}, (Path(__file__).parent.parent / "tests/data/text/sacrebleu.json").open("w"), ensure_ascii=True, indent=0)
