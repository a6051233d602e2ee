"""Who may do what. The one place where rights are decided; what is not allowed here is not allowed."""

from pki.identity import Identity
from workerd.engine.job import Job


def allows(identity: Identity, right: str, job: Job | None) -> bool:
    """Decide whether a user may do something.

    Every user has all rights on their own jobs and none on others'; what concerns no job, everybody may.

    Args:
        identity: who asks.
        right: what for; all are alike for now.
        job: the job that it would be done to, or None.
    """
    del right
    return job is None or job.spec.owner.id == identity.user_id
