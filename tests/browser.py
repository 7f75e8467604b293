"""A browser without a window that the tests press keys in: Chromium, driven by selenium, where there is one."""

import shutil
import time
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US")
PATIENCE = 60
"""Seconds that a test waits for something to happen."""
_STARTS = 3
"""Times that the browser is started before its not coming up is an error."""


@contextmanager
def chromium(downloads):
    """A browser that keeps what it downloads in a folder; without one the test is skipped."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no chromium with a chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = _started(webdriver, options)
    try:
        yield driver
    finally:
        driver.quit()


def _started(webdriver, options):
    """A browser that has started; on a machine with much else to do, the first that does in time."""
    from selenium.common.exceptions import SessionNotCreatedException

    for left in range(_STARTS - 1, -1, -1):
        try:
            return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        except SessionNotCreatedException:
            if not left:
                raise


def resize(driver, width, height):
    """Makes the page as wide and as high as a screen of so many pixels."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


def prefer(driver, **features):
    """Makes the browser's user prefer something, such as color_scheme="dark"; nothing takes it back."""
    named = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})


def until(holds):
    """Waits until something is true, and returns it."""
    end = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.02)
    return found
