"""Sends e-mail through the server of SMTP_HOST and SMTP_PORT.

python mail.py ann@example.org "Welcome" "Hello, Ann."
queue-actor work mail:app
"""

import os
import smtplib
import sys
from email.message import EmailMessage

import msgspec

from queue_actor.client import Client
from queue_actor.worker import App, Reject, Retry, RunningJob

app = App(queue="mail")

PERMANENT = 500
"""From here on an answer by SMTP means that another try would be answered alike."""


class Mail(msgspec.Struct):
    to: str
    subject: str
    text: str


@app.job("send")
def send(mail: Mail, job: RunningJob) -> None:
    message = EmailMessage()
    message["From"] = "queue@example.org"
    message["To"] = mail.to
    message["Subject"] = mail.subject
    # The same with each attempt: if one was sent and nobody heard of it, the reader's program can tell.
    message["Message-ID"] = f"<{job.queue}.{job.id}@example.org>"
    message.set_content(mail.text)
    try:
        with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"]), timeout=10) as server:
            server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        ((code, answer),) = error.recipients.values()
        told = f"{code} {answer.decode(errors='replace')}"
        if code >= PERMANENT:
            raise Reject(told) from error
        raise Retry(told, after=1 if job.attempt == 1 else None) from error


if __name__ == "__main__":
    with Client() as client:
        job = client.enqueue("mail", "send", Mail(*sys.argv[1:]))
        print(f"mail/{job.id}")
