//! A gRPC server whose only method is asynchronous and calls a synchronous function, and a client in the same process.
//! The server counts what it does itself. Lines on stdin, each answered by one line of JSON:
//!
//! - `calls N`: N calls, four at a time: `{"ran"}`
//! - `counts`: `{"calls","checked","polls"}`: calls, calls of the function, polls of the method's future
//! - `quit`: answers, then ends; the end of stdin does the same

use std::{
    convert::Infallible,
    future::Future,
    io::BufRead as _,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
};

use tonic::{
    Request, Response, Status,
    body::Body,
    client::Grpc as Client,
    server::{Grpc, NamedService, UnaryService},
    transport::{Channel, Server},
};
use tonic_prost::ProstCodec;

static CALLS: AtomicU64 = AtomicU64::new(0);
static CHECKED: AtomicU64 = AtomicU64::new(0);
static POLLS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(uint32, tag = "1")]
    number: u32,
}

/// A synchronous function: whoever watches it sees each call.
#[inline(never)]
fn check_item(number: u32) -> u32 {
    let rest = std::hint::black_box(number) % 3;
    CHECKED.fetch_add(1, Relaxed);
    rest
}

/// What the server does for a call. It lets others run twice in between.
async fn answer_item(number: u32) -> Result<Item, Status> {
    CALLS.fetch_add(1, Relaxed);
    tokio::task::yield_now().await;
    let number = check_item(number);
    tokio::task::yield_now().await;
    Ok(Item { number })
}

/// A future whose polls are counted.
struct Counted(Pin<Box<dyn Future<Output = Result<Item, Status>> + Send>>);

impl Future for Counted {
    type Output = Result<Response<Item>, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        POLLS.fetch_add(1, Relaxed);
        self.0.as_mut().poll(context).map(|result| result.map(Response::new))
    }
}

#[derive(Clone)]
struct Items;

impl UnaryService<Item> for Items {
    type Response = Item;
    type Future = Counted;

    fn call(&mut self, request: Request<Item>) -> Counted {
        Counted(Box::pin(answer_item(request.into_inner().number)))
    }
}

impl NamedService for Items {
    const NAME: &'static str = "stock.Items";
}

impl tonic::codegen::Service<http::Request<Body>> for Items {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Items, request).await) })
    }
}

async fn call(channel: Channel, times: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = Client::new(channel);
    for number in 0..times {
        client.ready().await?;
        let path = http::uri::PathAndQuery::from_static("/stock.Items/Answer");
        let _: Response<Item> =
            client.unary(Request::new(Item { number }), path, ProstCodec::<Item, Item>::default()).await?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let channel = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(Items).serve_with_incoming(incoming));
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(channel)
    })?;
    println!("{{\"ready\":true,\"pid\":{}}}", std::process::id());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some(times) = line.strip_prefix("calls ") {
            let times: u32 = times.parse()?;
            runtime.block_on(async {
                let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(call(channel.clone(), times / 4))).collect();
                for task in tasks {
                    task.await??;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })?;
            println!("{{\"ran\":{times}}}");
        } else if line == "counts" {
            let [calls, checked, polls] = [&CALLS, &CHECKED, &POLLS].map(|count| count.load(Relaxed));
            println!("{{\"calls\":{calls},\"checked\":{checked},\"polls\":{polls}}}");
        } else {
            println!("{{}}");
            break;
        }
    }
    Ok(())
}
