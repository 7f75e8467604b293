"""Who chats with a model sees answers as they come, keeps the cache over turns, and can take back, retry and save."""

import io
import json
import os
import re
import shutil
import sys

import pytest
import torch
from chats import ENDS, TEMPLATE, Screen, chat, say
from conftest import assert_one_line_error
from lightning.fabric import Fabric
from script_processes import run
from test_command_line_main import main_of

from lit_gpt.args import AdapterArgs, LoRAArgs
from lit_gpt.errors import UserError
from lit_gpt.generation.conversation import asked
from lit_gpt.prompts import Turn
