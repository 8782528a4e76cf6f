use super::*;

#[test]
fn a_name_stays_one_segment_of_a_path() {
    assert_eq!(segment("web-0.x_y"), "web-0.x_y");
    assert_eq!(segment("../nodes?x=1"), ".._nodes_x_1");
}
