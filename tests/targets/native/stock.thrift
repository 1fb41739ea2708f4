// What the C++ server of the tests serves.
namespace cpp stock

exception Missing {
  1: string item
}

service Stock {
  i32 lookup(1: string item, 2: i32 most) throws (1: Missing missing),
  void restock(1: string item),
}
