import sys; sys.path.insert(0, sys.argv[1])
from flowdiff import config; from flowdiff.runs import identity
import flowdiff; assert flowdiff.__file__.startswith(sys.argv[1]), flowdiff.__file__
for o in (["dataset=image_folder","dataset.path=/tmp/m4/im/classes","dataset.num_classes=3"],["dataset=image_folder","conditioner=none","dataset.path=/tmp/m4/im/classes"],["dataset=image_zip","dataset.num_classes=10"],["dataset=image_zip","conditioner=none"],["dataset=cifar10"],[]):
    print(identity.run_id(config.resolved(config.compose(o))), o)
