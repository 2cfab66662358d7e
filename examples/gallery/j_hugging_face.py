"""
Hugging Face, from training to a folder and back
================================================

A small BERT is trained by transformers' ``Trainer`` with a budget of parameters, made smaller, saved with
``save_pretrained``, and loaded with ``from_pretrained``. The task: has a text more tokens below 16 than above?
"""

from tempfile import TemporaryDirectory

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from shrinkage import Budget, CoupledChannels, shrink
from shrinkage.integrations.transformers import RegularizerCallback
from shrinkage.pictures.models import layer_sizes

torch.manual_seed(0)
config = BertConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
model = BertForSequenceClassification(config)
texts = torch.randint(32, (2000, 11))
examples = [{"input_ids": text, "labels": (text < 16).sum().gt(5).long()} for text in texts]
inputs = {"input_ids": texts[:2]}

epochs, batch = 8, 50
updates = epochs * len(examples) // batch
budget = Budget(parameters=12_000, updates=updates, groups=CoupledChannels(model, (), example_kwargs=inputs))
with TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=2e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=examples, callbacks=[RegularizerCallback(budget)])
    trainer.train()

    small = shrink(model, (), example_kwargs=inputs)
    small.model.save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)

# %%
# The model that was loaded gives the outputs of the dense one.

fresh = torch.randint(32, (500, 11))
with torch.no_grad():
    scores, expected = loaded.eval()(fresh).logits, model.eval()(fresh).logits
torch.testing.assert_close(scores, expected)
right = (scores.argmax(1) == (fresh < 16).sum(1).gt(5)).float().mean()
print(f"accuracy on texts that it has not seen: {right:.3f}")
figure = layer_sizes(model, loaded)
