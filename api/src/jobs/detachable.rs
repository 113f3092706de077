//! Work that its caller waits for, and that goes on when he does not.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// A future that is polled where it is awaited, without a task of its own; dropped before its end, it becomes one.
pub(super) struct Detachable<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
    runtime: Handle,
}

impl<T: Send + 'static> Detachable<T> {
    /// Work that goes on in `tasks` when it is dropped. To be called on a runtime.
    pub(super) fn new(tasks: &TaskTracker, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)), tasks: tasks.clone(), runtime: Handle::current() }
    }
}

impl<T: Send + 'static> Future for Detachable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detachable<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            drop(self.tasks.spawn_on(work, &self.runtime));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_awaited_gives_its_value_and_what_is_dropped_goes_on() {
        let tasks = TaskTracker::new();
        assert_eq!(Detachable::new(&tasks, async { 7 }).await, 7);
        assert!(tasks.is_empty());
        let (go, gone) = oneshot::channel::<()>();
        let (done, seen) = oneshot::channel();
        let mut work = Detachable::new(&tasks, async move {
            gone.await.unwrap();
            done.send(7).unwrap();
        });
        assert!(futures_util::poll!(&mut work).is_pending());
        drop(work);
        assert_eq!(tasks.len(), 1);
        go.send(()).unwrap();
        assert_eq!(seen.await.unwrap(), 7);
        tasks.close();
        tasks.wait().await;
    }
}
